"""Thin translators between a `VoiceSession` and the frameworks. Each is imported by name, with its framework's extra."""
