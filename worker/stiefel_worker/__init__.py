"""Celery workers: each job runs supervised in an isolated child process."""
