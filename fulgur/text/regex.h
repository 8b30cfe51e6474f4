// Regular expressions, as JSON Schema's "pattern" has them (ECMA 262), to expressions of a grammar.
#pragma once

#include <string_view>

#include "fulgur/text/grammar.h"

namespace fulgur {

// Alternatives, groups, classes ([], \d \w \s . and their opposites), escapes, * + ? {n,m}, and ^ $ at the ends. Without them any
// text may stand before and behind, as "pattern" means it. `character` makes the expression of one character of a class: in a
// JSON string quotes and controls are escaped. Throws InputError that names the byte: what is none, and lookaround, references
// back, lazy counts in a way that matters, \b and \p.
Expr regex(std::string_view pattern, Expr (*character)(const CodePoints&) = one_of);

}  // namespace fulgur
