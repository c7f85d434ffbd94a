"""Where attempts run. base.py is what the supervisor asks of an executor, local.py runs them on this machine."""
