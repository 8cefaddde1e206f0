"""Resumable jobs: the frame of every job, journal, workspace, manifest, signals, streams."""
