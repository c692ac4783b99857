"""VLM: one encoder for video, text and both, pre-trained by masking and fine-tuned to five tasks.

H. Xu et al., "VLM: Task-agnostic Video-Language Model Pre-training for Video Understanding",
Findings of ACL 2021, arXiv:2105.09996.
"""
