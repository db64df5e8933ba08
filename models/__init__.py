"""Model bundles: where each part of a CSM system comes from, and how its files are opened.

A bundle is a folder with a `bundle.toml`. `CSM_MODEL` names one: `embedded`, `noise` and `csm-1b`
stand in this package, anything with a path separator is a folder of the user's.
`bundle` and `files` know no torch; `checkpoint` and `mimi` do.
"""
