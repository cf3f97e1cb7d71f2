"""The page of `lexiseg serve`: a photo and words in, a picture to look into and files out."""
