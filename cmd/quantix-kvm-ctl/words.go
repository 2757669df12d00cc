package main

import (
	"errors"
	"strings"
)

// oneOf returns the one word that is the given one, or begins with it, so that nobody has to write a long id. Where there is
// none it is returned as it is: the guest says what is wrong with it.
func oneOf(given string, words []string) (string, error) {
	if given == "" {
		return "", usage("the id is empty")
	}
	var fitting []string
	for _, word := range words {
		if word == given {
			return word, nil
		}
		if strings.HasPrefix(word, given) {
			fitting = append(fitting, word)
		}
	}
	switch len(fitting) {
	case 0:
		return given, nil
	case 1:
		return fitting[0], nil
	}
	return "", &failure{exitUsage, errors.New(given + " is the beginning of several: " + strings.Join(fitting, ", "))}
}
