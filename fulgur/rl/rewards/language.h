// Whether an answer keeps to its prompt's language.
#pragma once

#include <string_view>

namespace fulgur {

// The share, from 0 to 1, of the answer's letters that are of the prompt's main script; 1 where the prompt or the answer has no
// letter. Left out of both are code (fences and backticks), LaTeX (maths and commands), URLs, tags, digits and signs. A Han
// character weighs three letters, kana and Hangul two, as they say more each. Han with at least a tenth of kana is Japanese, of
// which Han and kana are; but of more than 16 Han characters without kana in the answer none is, because they are Chinese. Bytes
// that are no UTF-8 are no letters.
//
// Tells scripts, not languages: English, German and Vietnamese are all Latin, Russian and Ukrainian Cyrillic, Arabic, Persian and
// Urdu Arabic, Hindi and Marathi Devanagari, simplified and traditional Chinese Han. Prose that hides in code or maths is not
// seen. Linear in the text's size. Thread-safe.
// The reward is DeepSeek-R1's (arXiv 2501.12948, section 2.3.2), which counts words; scripts by PCRE2's Unicode tables.
double language_consistency(std::string_view prompt, std::string_view answer);

}  // namespace fulgur
