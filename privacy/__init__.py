"""What a run can say about privacy. Maths and words only."""
