"""Tables, HTML pages, matplotlib figures and panels of images."""
