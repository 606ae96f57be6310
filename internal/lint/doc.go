// Package lint has no code of its own: its test holds the rules about who may import what, which the compiler
// does not know. The table in its test is the layering of the project.
package lint
