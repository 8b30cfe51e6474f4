#include <gumbo.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <memory_resource>
#include <vector>

#include "fulgur/base/error.h"
#include "fulgur/train/data/documents.h"

namespace fulgur {
namespace {

bool hidden(GumboTag tag) {
  constexpr std::array kTags = {GUMBO_TAG_SCRIPT,   GUMBO_TAG_STYLE,    GUMBO_TAG_HEAD,
                                GUMBO_TAG_NOSCRIPT, GUMBO_TAG_TEMPLATE, GUMBO_TAG_NAV};
  return std::find(kTags.begin(), kTags.end(), tag) != kTags.end();
}

bool is_inline(GumboTag tag) {
  constexpr std::array kTags = {GUMBO_TAG_A,   GUMBO_TAG_ABBR, GUMBO_TAG_B,     GUMBO_TAG_CITE, GUMBO_TAG_CODE,
                                GUMBO_TAG_EM,  GUMBO_TAG_FONT, GUMBO_TAG_I,     GUMBO_TAG_KBD,  GUMBO_TAG_Q,
                                GUMBO_TAG_S,   GUMBO_TAG_SAMP, GUMBO_TAG_SMALL, GUMBO_TAG_SPAN, GUMBO_TAG_STRONG,
                                GUMBO_TAG_SUB, GUMBO_TAG_SUP,  GUMBO_TAG_TT,    GUMBO_TAG_U,    GUMBO_TAG_VAR};
  return std::find(kTags.begin(), kTags.end(), tag) != kTags.end();
}

bool may_stay_open(GumboTag tag) {
  constexpr std::array kTags = {GUMBO_TAG_A,     GUMBO_TAG_AREA,  GUMBO_TAG_BASE,   GUMBO_TAG_BR,    GUMBO_TAG_COL,
                                GUMBO_TAG_DD,    GUMBO_TAG_DT,    GUMBO_TAG_EMBED,  GUMBO_TAG_HR,    GUMBO_TAG_IMG,
                                GUMBO_TAG_INPUT, GUMBO_TAG_LI,    GUMBO_TAG_LINK,   GUMBO_TAG_META,  GUMBO_TAG_OPTION,
                                GUMBO_TAG_P,     GUMBO_TAG_PARAM, GUMBO_TAG_SOURCE, GUMBO_TAG_TBODY, GUMBO_TAG_TD,
                                GUMBO_TAG_TFOOT, GUMBO_TAG_TH,    GUMBO_TAG_THEAD,  GUMBO_TAG_TR,    GUMBO_TAG_TRACK};
  return std::find(kTags.begin(), kTags.end(), tag) != kTags.end();
}

// Gumbo's time grows with the square of the open elements. Counted by the tags as they are written, which is near enough.
void check_depth(std::string_view html, const std::string& name) {
  constexpr int kDeepest = 4096;
  std::array<int, GUMBO_TAG_LAST + 1> open{};
  int depth = 0;
  for (size_t at = 0; (at = html.find('<', at)) != std::string_view::npos;) {
    bool end = ++at < html.size() && html[at] == '/';
    at += end;
    size_t length = std::min(html.find_first_of(" \t\r\n/><", at), html.size()) - at;
    GumboTag tag = gumbo_tagn_enum(html.data() + at, unsigned(length));
    if (length == 0 || !std::isalpha(uint8_t(html[at])) || may_stay_open(tag)) continue;
    int change = end ? -int(open[tag] > 0) : 1;
    open[tag] += change, depth += change;
    FULGUR_CHECK(depth <= kDeepest, "[data] ", name, ": expected at most ", kDeepest,
                 " elements inside each other, got more at byte ", at);
  }
}

// White space runs become one space outside <pre>; a block starts on a line of its own.
class Writer {
 public:
  // No recursion: how deep elements nest is the file's choice.
  void write(const GumboNode& root) {
    enter(root, false);
    while (!open_.empty()) {
      Open& last = open_.back();
      if (last.next < last.children->length) {
        enter(*static_cast<const GumboNode*>(last.children->data[last.next++]), last.preformatted);
      } else {
        if (last.block) end_line();
        open_.pop_back();
      }
    }
  }
  std::string take() { return std::move(out_); }

 private:
  struct Open {
    const GumboVector* children;
    unsigned next;
    bool block, preformatted;
  };
  void enter(const GumboNode& node, bool preformatted) {
    if (node.type == GUMBO_NODE_TEXT || node.type == GUMBO_NODE_CDATA) return text(node.v.text.text, preformatted);
    if (node.type == GUMBO_NODE_WHITESPACE) return text(" ", preformatted);
    if (node.type == GUMBO_NODE_DOCUMENT) return open_.push_back({&node.v.document.children, 0, false, false});
    if (node.type != GUMBO_NODE_ELEMENT || hidden(node.v.element.tag)) return;
    bool block = !is_inline(node.v.element.tag);
    if (block) end_line();
    open_.push_back({&node.v.element.children, 0, block, preformatted || node.v.element.tag == GUMBO_TAG_PRE});
  }
  void text(std::string_view value, bool preformatted) {
    for (char c : value) {
      bool space = c == ' ' || c == '\t' || c == '\n' || c == '\r';
      if (!space || preformatted) out_ += c;
      else if (!out_.empty() && out_.back() != ' ' && out_.back() != '\n') out_ += ' ';
    }
  }
  void end_line() {
    while (!out_.empty() && out_.back() == ' ') out_.pop_back();
    if (!out_.empty() && out_.back() != '\n') out_ += '\n';
  }
  std::vector<Open> open_;
  std::string out_;
};

}  // namespace

std::string html_text(std::string_view given, const std::string& name) {
  check_depth(given, name);
  // Gumbo 0.10 fails an assertion on CDATA inside tables, so its marks become those of a comment.
  std::string html(given);
  for (size_t at = 0; (at = html.find("<![CDATA[", at)) != std::string::npos;) html[at + 3] = 'c';
  std::pmr::monotonic_buffer_resource memory;  // freed at once: gumbo_destroy_output recurses
  GumboOptions options = kGumboDefaultOptions;
  options.max_errors = 0;  // it reads behind the text when it describes a bad character reference
  options.userdata = &memory;
  options.allocator = [](void* to, size_t size) { return static_cast<std::pmr::memory_resource*>(to)->allocate(size); };
  options.deallocator = [](void*, void*) {};
  Writer writer;
  writer.write(*gumbo_parse_with_options(&options, html.data(), html.size())->document);
  return writer.take();
}

}  // namespace fulgur
