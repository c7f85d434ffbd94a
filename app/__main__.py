"""`python -m app`: serve."""

from app.cli import serve_main

if __name__ == "__main__":
    serve_main()
