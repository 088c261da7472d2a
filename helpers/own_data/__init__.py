"""A learner's own data: from any common file to rows, with what seems wrong in them."""
