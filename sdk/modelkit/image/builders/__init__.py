"""One builder per file, in the shape of `base`; `choose` picks one."""
