"""`packhorse load-test`: measure a server under load, over HTTP.

Requests are sent when they are due, whether or not earlier ones were answered (an open loop), and
latency counts from the moment a request was due: a server that falls behind cannot hide it by
slowing its clients down ("coordinated omission").
"""
