"""The shapes of requests and answers, by subject. Times are RFC 3339 UTC; numbers that are not finite are their names."""
