/* The blob's bytes, embedded. */
	.section .rodata
	.balign 4096
	.globl cr_blob_image, cr_blob_image_end
cr_blob_image:
	.incbin "pie/blob.bin"
cr_blob_image_end:
	.section .note.GNU-stack,"",@progbits
