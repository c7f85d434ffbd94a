"""The service: REST and websockets over runs, a queue, and worker processes. main.py wires it together.

Never imports torch. Of cognate it knows the published language only: config, metrics, events, rundir.
"""
