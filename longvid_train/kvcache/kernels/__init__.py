"""Decoding on packed codes, all pages in one launch: Triton kernels, the caches they read, and the call around them."""
