"""Names of a candlestick's columns, in the order that the network reads them."""

PRICE_FIELDS = ("open", "high", "low", "close")
BAR_FIELDS = (*PRICE_FIELDS, "volume", "amount")
