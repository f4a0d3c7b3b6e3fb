"""Prompts: tokens, words, phrases, and what is planned with them."""
