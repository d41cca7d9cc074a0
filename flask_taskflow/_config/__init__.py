"""What an app may configure: its settings, and the URLs in them."""
