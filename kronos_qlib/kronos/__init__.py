"""The network and its sampler; imports torch and nothing of ours."""
