#include "admin_answers.h"

#include <stdint.h>

/* The file as it is, inside the program. The path is from where the compiler is called: the top folder. */
__asm__(".section .rodata\n"
	".type admin_page_bytes, @object\n"
	"admin_page_bytes:\n"
	".incbin \"src/services/page.html\"\n"
	".type admin_page_bytes_end, @object\n"
	"admin_page_bytes_end:\n"
	".byte 0\n"
	".previous\n");

extern const char admin_page_bytes[], admin_page_bytes_end[];

static enum answer_step
write_page(struct inquiry *inquiry, struct page *page)
{
	(void)inquiry;
	page_refer(page, admin_page_bytes,
		   (uintptr_t)admin_page_bytes_end - (uintptr_t)admin_page_bytes);
	return ANSWER_DONE;
}

/* It asks nobody but us, and stands in nobody's frame. */
const struct answer admin_page_all = {
	.content_type =
		"text/html; charset=utf-8\r\n"
		"Content-Security-Policy: default-src 'none'; script-src 'unsafe-inline'; "
		"style-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; "
		"form-action 'none'; frame-ancestors 'none'\r\n"
		"Referrer-Policy: no-referrer",
	.write = write_page,
};
