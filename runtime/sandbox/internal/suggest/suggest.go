// Package suggest finds the word that was probably meant by a misspelt one.
//
// Not here: whether a word is right.
package suggest

// Closest returns the word that is nearest to the given one, by insertions, deletions and replacements of bytes; empty
// where none is near enough to be a misspelling. The first of equals wins.
func Closest(given string, words []string) string {
	if len(given) > 64 {
		return ""
	}
	best, least := "", min(3, 1+len(given)/3)
	for _, word := range words {
		if len(word) > 64 {
			continue
		}
		if d := distance(given, word); d < least || d == least && best == "" && d < len(given) {
			best, least = word, d
		}
	}
	return best
}

// distance returns the Levenshtein distance, computed row by row.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
