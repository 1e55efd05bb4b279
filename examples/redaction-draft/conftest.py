"""Lets pytest find plugin.py beside this file."""
