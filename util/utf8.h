/* SPDX-License-Identifier: Apache-2.0 */
/* Text of anybody's, such as names that a guest has chosen, for terminals and JSON. */
#ifndef KX_UTF8_H
#define KX_UTF8_H
#include <string.h>

/* Length of the UTF-8 character at s, before end; 0 when there is none. Control characters are none. */
static inline int utf8_char(const char *text, const char *end)
{
	const unsigned char *s = (const unsigned char *)text;
	if (*s < 0x80)
		return *s >= 0x20 && *s != 0x7f;
	int n = *s >= 0xc2 && *s < 0xe0 ? 2 : *s >= 0xe0 && *s < 0xf0 ? 3 : *s >= 0xf0 && *s < 0xf5 ? 4 : 0;
	if (!n || end - text < n)
		return 0;
	for (int i = 1; i < n; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	if ((*s == 0xe0 && s[1] < 0xa0) || (*s == 0xed && s[1] > 0x9f) || (*s == 0xf0 && s[1] < 0x90) ||
	    (*s == 0xf4 && s[1] > 0x8f))
		return 0;
	return *s == 0xc2 && s[1] < 0xa0 ? 0 : n; /* C1 controls move terminals, too */
}

#define JSON_CHAR_MAX 6

/* What stands in a JSON string for the character at *s, which moves behind it; returns its length. Bytes that are no UTF-8
 * become U+FFFD. */
static inline int json_char(const char **s, const char *end, char out[JSON_CHAR_MAX])
{
	static const char digits[] = "0123456789abcdef";
	unsigned char c = (unsigned char)**s;
	int n = utf8_char(*s, end);
	if (c == '"' || c == '\\') {
		out[0] = '\\';
		out[1] = (char)c;
		n = 2;
	} else if (n) {
		memcpy(out, *s, (size_t)n);
		*s += n - 1;
	} else if (c < 0x80) {
		memcpy(out, "\\u00", 4);
		out[4] = digits[c >> 4];
		out[5] = digits[c & 15];
		n = 6;
	} else {
		memcpy(out, "\\ufffd", 6);
		n = 6;
	}
	++*s;
	return n;
}
#endif
