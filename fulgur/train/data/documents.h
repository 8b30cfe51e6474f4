// Documents from what people have: files, folders, JSON Lines, HTML, each of them also gzipped. No torch.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace fulgur {

struct Document {
  std::string name;  // the file, with ":line" for JSON Lines
  std::string text;  // valid UTF-8
};

// Calls visit for each document, folders in order of path: .jsonl (a "text" field a line), .html .htm (markup removed),
// anything else that is text. Files with NUL bytes are skipped. Throws InputError naming the file (and line).
void for_each_document(const std::filesystem::path& path, const std::function<void(Document)>& visit);

// The text a reader of the page sees; scripts, styles and the head are left out, block elements end lines. Throws InputError
// with `name` where elements nest thousands deep. Character references may make the text invalid UTF-8.
std::string html_text(std::string_view html, const std::string& name);

}  // namespace fulgur
