"""Preference data: files and hub names become text pairs, text becomes token ids, records become tables."""
