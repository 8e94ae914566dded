"""Tables, HTML pages and image panels."""
