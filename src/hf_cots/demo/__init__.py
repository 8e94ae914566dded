"""`hf-cots demo`: everything from images to a searchable model, on a CPU, in minutes."""
