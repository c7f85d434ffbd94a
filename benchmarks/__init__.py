"""Measurements of Cognate beside what others would use; the service and the tests need none of this.

`make bench-train` is train.py. The rivals' packages come with the extra `bench` and are imported where they are built.
"""
