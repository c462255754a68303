"""What Glissade knows about images and where they are: tables shaped like Glance's, and the SQL over them."""
