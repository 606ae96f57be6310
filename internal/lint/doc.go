// Package lint has no code of its own. Its test holds the rules that the compiler does not know:
// who may import what, who may make system calls and use unsafe, and how wide a comment may be.
// The table in its test is the layering of the project.
package lint
