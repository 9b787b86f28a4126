"""Requests to servers: which errors are worth another try, and how many requests were made."""
