"""What is told about runs and models when they are asked about: evaluation, readiness, diversity, training, hand-off."""
