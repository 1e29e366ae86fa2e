static int unused_(void){return 0;} int fs_dummy(void); int fs_dummy(void){return unused_();}
