"""The built-in world: a synthetic preference task whose right answers are known.

A prompt names a mode and three to six topics. A good reply gives, for each topic, the one value that the mode's hidden
rule asks for, and then stops. Everything is text, so the world travels through the same rooms as real data.
"""
