"""Attribution by unlearning (arXiv 2506.18312): forget what was generated, and see which training songs get worse."""
