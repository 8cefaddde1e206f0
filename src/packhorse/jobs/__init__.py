"""Resumable jobs: steps of a job, journal, workspace, manifest, signals, streams."""
