"""Training: loop.py is the story; schedule, measure, checkpoint, control and reporter are what it is told with."""
