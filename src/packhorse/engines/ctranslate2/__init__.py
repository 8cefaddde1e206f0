"""The engine `ctranslate2`: static batches on CTranslate2 generators, one worker per generator."""
