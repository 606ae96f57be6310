package virtq

// Stored makes cfg call f after each store of New, and of the Queue that it makes, that a successor
// can find in the in-flight region or in used.idx.
func Stored(cfg Config, f func()) Config {
	cfg.stored = f
	return cfg
}
