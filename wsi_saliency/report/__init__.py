"""What is shown of an evaluation: sentences, pictures, a page."""
