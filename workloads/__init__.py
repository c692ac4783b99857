"""What is trained and how it is judged. Knows no strategy and no Flower."""
