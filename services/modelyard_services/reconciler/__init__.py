"""What is wanted against what is: floors, deadlines, liveness."""
