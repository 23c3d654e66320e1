"""How good masks and maps are: confusion matrix, threshold curve, average precision, bootstrap."""
