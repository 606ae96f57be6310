// Package mutants has no code of its own. Its tests hold a list of defects (mutants), and for each
// the tests that must notice it. What a mend relies on stays tested in this way: a defect takes it
// out, and a named test fails.
//
// Every run of the tests looks that each defect still applies to the code. scripts/mutants puts the
// defects into the code, one at a time, and runs their tests. The tables stand in one file for each
// area, table_AREA_test.go.
package mutants
