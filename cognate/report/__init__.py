"""What is told of runs and models when they are asked about: evaluation, readiness, diversity, training, hand-off.

Each module has the function that makes its report and `perform`, the job. history.py reads run directories; document.py and charts.py
write reports; verify.py is what the receiver of a hand-off runs.
"""
