"""Operations with more than one implementation, and the table that chooses between them."""
