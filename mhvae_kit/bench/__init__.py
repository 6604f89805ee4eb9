"""`mhvae bench`: how long the model takes and how much memory it needs, alone and side by side with other code."""
