"""`hf-cots demo`: from images to a searchable model, on a CPU, in minutes."""
